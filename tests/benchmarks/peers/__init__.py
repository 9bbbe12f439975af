"""Speed, memory and error beside the tools that others use for the same model: paired rounds, see README.md."""
