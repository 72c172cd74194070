"""What HAProxy hears: when it asks, without being asked, and in its configuration."""

from .agent import MOST_BALANCERS as MOST_BALANCERS
from .agent import MOST_OF_ADDRESS as MOST_OF_ADDRESS
from .agent import Agent as Agent
from .balancer_names import NewBalancers as NewBalancers
from .config import Server as Server
from .config import Setting as Setting
from .config import configuration as configuration
from .push import Push as Push
