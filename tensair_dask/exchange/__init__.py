"""How replicas exchange gradients: pure structures, and the comms on top of them.

Read in this order: `arena` (parameters in one buffer), `clock`, `message`,
`accumulator` (what waits to be published), `inbox` (what has arrived), `pacer` (when
to publish), `exchange` (the part that talks to the peers, through pubsub).
"""
