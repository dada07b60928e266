"""What torchrun starts in tests of several ranks."""
