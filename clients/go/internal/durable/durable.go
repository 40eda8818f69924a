// Package durable has the one way in which a file is made durable: temporary file, fsync, rename, fsync of the folder.
package durable

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Temporary is the end of the name of a file that does not count yet.
const Temporary = ".partial"

// Write makes path hold what write writes, whole or not at all; once it returns, a power cut cannot undo it. The file is
// its owner's alone.
func Write(path string, write func(io.Writer) error) error {
	temporary := path + Temporary
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	buffered := bufio.NewWriterSize(file, 1<<20)
	if err := errors.Join(write(buffered), buffered.Flush()); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return Name(temporary, path)
}

// Name gives a file that was synced its name, durably.
func Name(temporary, path string) error {
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// MakeFolder makes a folder for its owner alone, and those above it: a power cut cannot take it with what is in it.
func MakeFolder(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	above := filepath.Dir(path)
	if err := MakeFolder(above); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) { // another process was quicker
		return err
	}
	return syncFolder(above)
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// WriteBytes is Write for what is in memory.
func WriteBytes(path string, data []byte) error {
	return Write(path, func(to io.Writer) error {
		_, err := to.Write(data)
		return err
	})
}

// Seal keeps facts as JSON after a line with the SHA-256 of it: a flipped bit in a number is a number too.
func Seal(path string, facts any) error {
	text, err := json.Marshal(facts)
	if err != nil {
		return err
	}
	return WriteBytes(path, append([]byte(digest(text)+"\n"), text...))
}

// Unseal reads what Seal has kept; an error says that it is not there, or not what was written.
func Unseal(path string, facts any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	line, text, _ := bytes.Cut(content, []byte("\n"))
	if string(line) != digest(text) {
		return errors.New("its facts do not match their digest")
	}
	return json.Unmarshal(text, facts)
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
