"""What both ends of a federation share: the contract's stubs and the rules that surround them."""
