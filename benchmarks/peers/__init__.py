"""Compares RecTools' SASRec and HSTU with Currents' SASRec on the same split with the same ranking."""
