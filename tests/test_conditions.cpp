// expr("...") in patterns: its text, its inputs, what is visible, what reaches a kernel, and every
// refusal.
#include <doctest/doctest.h>
