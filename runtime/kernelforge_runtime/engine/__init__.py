"""From prompts to text: prefill, decode, sampling, streaming; of one prompt or of many at once."""
