"""RecTools' SASRec and HSTU beside our SASRec: same split, same ranking."""
