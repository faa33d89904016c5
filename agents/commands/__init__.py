"""The commands of the command line, one file for each group of them: `mmgym.agents.cli` puts them together."""
