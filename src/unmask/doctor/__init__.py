"""What is installed, what this machine can do, how fast it is, and in plain words what is wrong with any of it.

`machine`, `libraries` and `speed` look and give facts; `findings` says what they mean.
"""
