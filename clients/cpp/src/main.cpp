/// The fedstream client in C++. Read it in the order of the numbers that its files begin with.
#include "../task/head.h"
#include "command.h"

int main(int argc, char** argv) { return fedstream::client::run_command(argc, argv, fedstream::client::open_head); }
