"""What `core.methods.block_removal` is made of: candidates, their removal, and what is done around it."""
