"""Which precision each step of a bundle runs in: made, tried on clips, and chosen by a budget.

Fewer bits are faster and wrong in new ways: on another step, another length, beside a louder
neighbour. So every candidate is a file that is measured like the reference it would replace, and
the task's own metric decides (`search`).
"""
