"""What HAProxy hears: when it asks, without being asked, and in its configuration."""

from ..policy import share as share
from .agent import MOST_BALANCERS as MOST_BALANCERS
from .agent import MOST_OF_ADDRESS as MOST_OF_ADDRESS
from .agent import Agent as Agent
from .agent import Balancer as Balancer
from .agent import next_limit as next_limit
from .balancer_names import NewBalancers as NewBalancers
from .config import Server as Server
from .config import Setting as Setting
from .config import configuration as configuration
from .push import Push as Push
