"""The demonstration: the whole loop on a real click log in compressed time, watched, verified and written up."""
