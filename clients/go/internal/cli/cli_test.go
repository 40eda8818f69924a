package cli

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/pb"
)

var sound = []string{"--server", "h:1", "--data", "d", "--name", "a", "--fingerprint", "sha256:" + strings.Repeat("0", 64)}

func words(more ...string) []string { return append(slices.Clone(sound), more...) }

func TestOptionsReadAsTheyAreMeant(t *testing.T) {
	config, err := readRun(words("--max-hours", "0.5", "--max-epochs", "3", "--state-dir", "s", "--give-up-after", "0.1", "--update-encoding", "int8+zstd"))
	if err != nil {
		t.Fatal(err)
	}
	if config.Limits.MaxTraining != 30*time.Minute || config.Limits.MaxEpochs != 3 || config.StateDir != "s" || config.GiveUpAfter != 100*time.Millisecond {
		t.Errorf("%+v", config)
	}
	if !slices.Equal(config.Encodings, []pb.Encoding{pb.Encoding_ENCODING_INT8_ZSTD}) || config.Out != filepath.Join("runs", "a") {
		t.Errorf("%+v", config)
	}
	if usual, err := readRun(words()); err != nil || len(usual.Encodings) != 5 || usual.GiveUpAfter != 0 {
		t.Errorf("%+v, %v", usual, err)
	}
}

func TestStateFolderStaysWhenTheServerIsReachedByAnotherAddress(t *testing.T) {
	home, joined := t.TempDir(), t.TempDir()
	t.Setenv("XDG_STATE_HOME", home)
	if err := os.WriteFile(filepath.Join(joined, "identity.json"), []byte(`{"server": "far:2", "name": "a"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		config, err := readRun([]string{"--server", "h:1", "--data", "d", "--identity", joined})
		if err != nil {
			t.Fatal(err)
		}
		return config.StateDir
	}
	if found := read(); found != filepath.Join(home, "fedstream-go", "far_2", "a") {
		t.Errorf("it is %s", found)
	}
	former := filepath.Join(home, "fedstream-go", "h_1", "a")
	if err := os.MkdirAll(former, 0o700); err != nil {
		t.Fatal(err)
	}
	if found := read(); found != former {
		t.Errorf("what an earlier version has left is not gone on with, but %s", found)
	}
}

func TestWrongOptionsAreRefused(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	for what, words := range map[string][]string{
		"no server":                       sound[2:],
		"no data":                         words("--data", ""),
		"no trust":                        sound[:6],
		"plaintext far away":              append(slices.Clone(sound[:6]), "--plaintext"),
		"two kinds of trust":              words("--plaintext"),
		"a certificate without a key":     words("--certificate", "f"),
		"a fingerprint that is none":      words("--fingerprint", "sha256:0"),
		"a name with a slash":             words("--name", "a/b"),
		"a number that is none":           words("--max-epochs", "many"),
		"a span below nothing":            words("--max-hours", "-1"),
		"a span that no number is":        words("--give-up-after", "NaN"),
		"an encoding that nobody knows":   words("--update-encoding", "float8"),
		"an unknown option":               words("--speed", "9"),
		"a word that is no option":        words("fast"),
		"an identity that nobody has":     words("--fingerprint", "", "--identity", "nowhere"),
		"hours and seconds":               words("--max-hours", "1", "--max-seconds", "1"),
		"a certificate that is not there": append(slices.Clone(sound[:6]), "--certificate", "f", "--key", "f", "--server-ca", "f"),
	} {
		_, err := readRun(words)
		var stop *fault.Stop
		if !errors.As(err, &stop) || stop.Code != fault.BadConfiguration {
			t.Errorf("%s: %v", what, err)
		}
	}
}

const anyToken = "fsj1_AAECAwQFBgdkZWZnaGlqa2xtbm9wcXJzgazXYhQPppKhQoItL75NxvVLyqUB9oqzflru0Lr-TZlzaXRlLWEKZmwuZXhhbXBsZS5vcmc6ODQ0Mwo6ODQ0NGQMTQU"

func TestServerIsWhereTheOperatorReachesIt(t *testing.T) {
	for _, one := range []struct{ words, server, enrolment string }{
		{"--token -", "fl.example.org:8443", "fl.example.org:8444"},
		{"near:1 --token -", "near:1", "near:8444"},
		{"--token - [::1]:1", "[::1]:1", "[::1]:8444"},
		{"near:1 --token - --enrolment far:2", "near:1", "far:2"},
	} {
		asked, err := readJoin(strings.Fields(one.words), strings.NewReader(anyToken+"\n"))
		if err != nil || asked.server != one.server || asked.enrolment != one.enrolment {
			t.Errorf("%s: %+v, %v", one.words, asked, err)
		}
	}
}

func TestTokenIsReadFromAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(anyToken), 0o600); err != nil {
		t.Fatal(err)
	}
	if asked, err := readJoin([]string{"--token-file", file}, nil); err != nil || asked.token.Name != "site-a" {
		t.Errorf("%+v, %v", asked, err)
	}
	if _, err := readJoin([]string{"--token-file", file, "--token", "x"}, nil); err == nil {
		t.Error("two tokens are taken")
	}
}
