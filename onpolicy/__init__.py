"""On-policy self-distillation for reasoning models, with expressed uncertainty kept in sight.

Importing the package loads nothing heavy; every module imports what it needs and no more.
"""

__version__ = "0.1.0"
