"""Several processes that run one job, from meeting to what they say at work.

`meeting` lets them find each other and compare what they have, over plain
sockets and without JAX. `start` puts it before a job and lets JAX connect them.
`collectives` is what they say to each other from there on.
"""
