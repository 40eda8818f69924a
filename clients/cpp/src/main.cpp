/// The fedstream client in C++, with the task that it can train.
#include "command.h"
#include "train_head.h"

int main(int argc, char** argv) {
  using namespace fedstream::client;
  return run_command(argc, argv, head_trainer());
}
