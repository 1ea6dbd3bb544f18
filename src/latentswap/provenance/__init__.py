"""What an output says about itself."""
