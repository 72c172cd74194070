"""What everything that stands in front of a server's threads has in common.

A *front* sees each request before a thread of the server is taken for it: it answers checks, queues
what has no thread, and refuses the rest. A server's own package knows how to see a request there,
how to have a thread serve it, and how to answer without one; all else is here.

*What is promised.* A check is answered although every thread is stuck, and takes no slot. At most
``threads`` requests are in the app, as many wait for as long as the gate's discipline says, and
none is run whose client has left by its turn. A refused request has not run. A slot is given back
exactly once, whatever raises. A drain loses nobody who has connected. What the guard itself cannot
do, it logs once a streak, and the request is served without the guard.

*The states of a request* (:class:`~.base.Visit`), from :meth:`enter` on::

    offered ---> served ---> left       a slot is free
            ---> refused                the queue is full, or the server drains
            ---> waiting ---> served    a slot has become free
                         ---> refused   it has waited too long
                         ---> dropped   its client has left

Of two threads that meet at one visit the gate decides which was first: ``wake`` is called once, and
``withdraw()`` is true for one caller only. So each visit sees one of :meth:`run`, :meth:`refuse`
and :meth:`drop`, once. One that has waited is looked at once more in the thread that it is given,
which does not do its work if its client has left.

*The states of a front*: made, started, draining (checks say so, new requests are refused, waiting
and running ones are served), the last call (:func:`~.last_connections.last_call`: the kernel lets
nobody new in, and each client that has connected gets an answer), ended. There is no way back.

*In an overload* most are refused, and the server's own way of reading a request and answering it
is what costs. So there the listening socket (:class:`~.refusing_listener.RefusingListener`) refuses
whoever has sent one whole request without a body, as soon as it is accepted.

*Who may call from where.* :meth:`enter` and :meth:`refuse` never block, for a server's loop calls
them. :meth:`run` may be called in any thread, for whoever leaves wakes the next. :meth:`serve` is
called in a thread of the server. ``drain()`` may be called in a signal handler: it takes no lock.
:meth:`beat` is called a few times a second by one thread: the reactor's, or the front's own
(:class:`~.threaded.ThreadedFront`).

:mod:`.sockets`, :mod:`.waiting_sockets`, :mod:`.descriptors`, :mod:`.progress` and
:mod:`.accept_backlog` know bytes and sockets, and no front.
"""
