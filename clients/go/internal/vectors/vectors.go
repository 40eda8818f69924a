// Package vectors reads the byte vectors that every implementation is held to (tests/wire/vectors), for tests.
package vectors

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// A Case has JSON values by their keys.
type Case map[string]json.RawMessage

// Read gives the cases of a file: comments, then blocks of `key: JSON` lines.
func Read(t *testing.T, name string) []Case {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	content, err := os.ReadFile(filepath.Join(filepath.Dir(here), "../../../../tests/wire/vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	var cases []Case
	for block := range strings.SplitSeq(string(content), "\n\n") {
		one := Case{}
		for line := range strings.Lines(block) {
			key, value, isPair := strings.Cut(strings.TrimSpace(line), ": ")
			if isPair && !strings.HasPrefix(line, "#") {
				one[key] = json.RawMessage(value)
			}
		}
		if len(one) > 0 {
			cases = append(cases, one)
		}
	}
	if len(cases) == 0 {
		t.Fatalf("%s has no case", name)
	}
	return cases
}

// Has says whether the case has a value that is not null.
func (c Case) Has(key string) bool { return c[key] != nil && string(c[key]) != "null" }

// Into reads a value.
func (c Case) Into(t *testing.T, key string, into any) {
	t.Helper()
	if err := json.Unmarshal(c[key], into); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
}

// Text reads a text; empty where there is none.
func (c Case) Text(t *testing.T, key string) string {
	t.Helper()
	text := ""
	if c.Has(key) {
		c.Into(t, key, &text)
	}
	return text
}

// Number reads a whole number.
func (c Case) Number(t *testing.T, key string) uint64 {
	t.Helper()
	var number uint64
	c.Into(t, key, &number)
	return number
}

// Bytes reads hexadecimal digits.
func (c Case) Bytes(t *testing.T, key string) []byte {
	t.Helper()
	return Hex(t, c.Text(t, key))
}

// Hex gives the bytes of hexadecimal digits.
func Hex(t *testing.T, digits string) []byte {
	t.Helper()
	data, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
