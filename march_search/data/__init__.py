"""Data pipeline: corpora, tokenizers, the token store, span corruption, batches and reference losses."""
