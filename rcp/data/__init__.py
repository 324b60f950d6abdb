"""Tasks as text, tokenised into batches. numpy only; jax is never imported here."""
