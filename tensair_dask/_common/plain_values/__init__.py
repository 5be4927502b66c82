"""Plain values, which a checkpoint holds because reading them runs no code.

`plain_state` makes values of objects, and puts them back into objects like these;
`tensors` makes of values and tensors what torch writes and reads. `kinds` says, for
both, what is plain.
"""
