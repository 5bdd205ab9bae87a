"""From a trained network to a smaller one: the stages every command and `compress` share."""
