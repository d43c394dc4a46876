"""The demo: live traffic through a real Envoy by round robin and by our default, watched and compared."""
