// Uses the C library as a project outside it does.
#include <girih/girih.h>
#include <stdio.h>

int main(void) {
  girih_program* program = NULL;
  if (girih_compile("causal&(sink(4)|window(left=63))", NULL, &program) != GIRIH_OK) {
    fprintf(stderr, "%s\n", girih_last_error());
    return 1;
  }
  printf("%s\n%s\n", girih_program_text(program), girih_version());
  girih_program_free(program);
  return 0;
}
