"""What a hostile job tries. The same files run inside the sandbox and, as their own control, outside."""
