"""From text to span-corruption batches: corpora, tokenizer, token store, corruption, batches, reference losses."""
