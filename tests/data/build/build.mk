# A program of three files, compiled one after the other and linked.
OBJECTS := main.o words.o sum.o

count: $(OBJECTS)
	cc -o $@ $(OBJECTS)

%.o: %.c count.h
	cc -O2 -c -o $@ $<
