"""What a training tells about itself, and what the scheduler keeps of it.

Replicas count (`counters`), their worker's ordinary heartbeat carries the counts
(`worker`), and the scheduler turns them into bounded series (`scheduler`, `trainers`,
`archive`). The client adds what only it knows once a second (`reporter`), and keeps
series of its own, of the reports that it sees anyway (`curves`). Nothing here sends a
message per mini-batch, and nothing here imports torch.
"""
