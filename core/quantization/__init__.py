"""Quantized formats and the engines that write them."""
