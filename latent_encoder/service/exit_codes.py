"""What the service's commands and doors end with."""

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

SOME_FAILED = 3
"""Of many pictures or messages."""

FENCED = 3
"""A Kafka worker that can go on no more, and is to be started again."""
