"""The text the quickstart's base model is pretrained on."""
