"""What several tests share: files, folders, stand-ins, and scripts that tests run in processes of their own."""
