"""RecurrentGemma: the same model as its authors' and transformers', and what it costs."""
