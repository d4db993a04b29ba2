"""Thin Ray shells around the library: plain classes here, `ray.remote` in rtrec_ray.app."""
