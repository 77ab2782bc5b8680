"""A file of values of quality rules as FineWeb-2 publishes them."""

VALUES = """\
dup_line_frac: 0.25
dup_n_grams:
- - 5
  - 0.9
language_score: 0.7
line_punct_thr: 0.2
max_avg_word_length: 12
max_non_alpha_words_ratio: 0.8
min_avg_word_length: 2
new_line_ratio: 0.3
stopwords: [chat, pluie, "no"]
top_n_grams:
- - 2
  - 0.5
"""
