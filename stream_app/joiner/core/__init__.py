"""The joiner's memory and steps as kernels: int64 words in one arena, and no object per event."""
