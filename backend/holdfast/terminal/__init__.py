"""`holdfast chat`: a client of the public protocol in the terminal."""
