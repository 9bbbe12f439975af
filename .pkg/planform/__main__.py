from planform.runtime.cli import main

main()
