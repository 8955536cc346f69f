"""From messages and pictures to tokens: chat templates, history, tokenizing. Runs no model."""
