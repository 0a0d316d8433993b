"""The one page that output reviewers read and sign: its data, its words, and HTML and PDF made from them."""
