"""The pruning engine. Knows no web, queue or SQL; usable as a library on its own."""
