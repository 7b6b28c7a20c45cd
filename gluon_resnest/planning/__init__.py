"""What a run would do and need, without data or devices: cost, memory, shares of the ranks."""
