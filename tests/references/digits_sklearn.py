"""Writes examples/digits/digits.txt: the 1797 handwritten digits that come with scikit-learn.

README.md beside this file has the command. A line is a picture: 8 rows of 8 pixels, each a letter from a (0, white) to
q (16, black), then a space and the digit.
"""

import pathlib

import sklearn
from sklearn.datasets import load_digits

digits = load_digits()
with open(pathlib.Path(__file__).parents[2] / "examples/digits/digits.txt", "w") as file:
    print(f"""# 1797 handwritten digits of 8 x 8 pixels, written by tests/references/digits_sklearn.py from scikit-learn {sklearn.__version__}.
# A pixel is a letter from a (0) to q (16); rows follow one another; behind the space stands the digit.
# Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998, UCI Machine Learning Repository,
# https://doi.org/10.24432/C50P49, the part for tests. License: Creative Commons Attribution 4.0 (CC BY 4.0).""", file=file)
    for pixels, digit in zip(digits.data.astype(int), digits.target):
        print("".join(chr(ord("a") + p) for p in pixels), digit, file=file)
