// Package token reads join tokens: one line of text with all that a site needs to join.
//
// One is `fsj1_` and base64url without `=` of: 8 bytes that name the invitation, 16 of secret, the 32 of the fingerprint of
// the server's certificate; the site's name, the server's address and that of enrolment, which is only :PORT where the host
// is the same, with line feeds between them; and the first 4 bytes of the SHA-256 of all that.
package token

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"fedstream/client/internal/limits"
	"fedstream/client/internal/link"
)

const (
	prefix      = "fsj1_"
	idBytes     = 8
	secretBytes = 16
	checkBytes  = 4
	fixedBytes  = idBytes + secretBytes + sha256.Size
	longest     = 2_048
)

// A Token is an invitation of one site. Server and Enrolment are HOST:PORT.
type Token struct {
	ID          []byte
	Secret      []byte
	Fingerprint string
	Name        string
	Server      string
	Enrolment   string
}

var errDamaged = errors.New("the join token is damaged: copy it again, whole")

// Decode reads a token, alone or in the whole of what `fedserver invite` printed. No error holds any part of it.
func Decode(text string) (*Token, error) {
	text, err := inText(strings.Fields(text))
	if err != nil {
		return nil, err
	}
	packed, isOne := strings.CutPrefix(text, prefix)
	if !isOne || len(text) > longest {
		return nil, errors.New("this is no join token: one begins with " + prefix + ", as `fedserver invite` prints it")
	}
	data, err := base64.RawURLEncoding.DecodeString(packed)
	if err != nil || len(data) <= fixedBytes+checkBytes {
		return nil, errDamaged
	}
	contents, check := data[:len(data)-checkBytes], data[len(data)-checkBytes:]
	if sum := sha256.Sum256(contents); !bytes.Equal(sum[:checkBytes], check) {
		return nil, errDamaged
	}
	token := &Token{ID: contents[:idBytes], Secret: contents[idBytes : idBytes+secretBytes]}
	token.Fingerprint = "sha256:" + hex.EncodeToString(contents[idBytes+secretBytes:fixedBytes])
	return token, token.readNames(string(contents[fixedBytes:]))
}

// inText gives the one token among the words of a text. A text that begins with one is nothing else: a mail program may have
// broken it into several words.
func inText(words []string) (string, error) {
	var found []string
	for _, word := range words {
		if strings.HasPrefix(word, prefix) && !slices.Contains(found, word) {
			found = append(found, word)
		}
	}
	switch {
	case len(found) == 0 || strings.HasPrefix(words[0], prefix):
		return strings.Join(words, ""), nil
	case len(found) > 1:
		return "", fmt.Errorf("there are %d join tokens in this text: give the one that is for this site", len(found))
	}
	return found[0], nil
}

func (t *Token) readNames(text string) error {
	names := strings.Split(text, "\n")
	if len(names) != 3 {
		return errors.New("the token names no server")
	}
	t.Name, t.Server, t.Enrolment = names[0], names[1], names[2]
	host, _, err := link.SplitAddress(t.Server)
	if err == nil && strings.HasPrefix(t.Enrolment, ":") {
		t.Enrolment = link.JoinAddress(host, t.Enrolment[1:])
	}
	if _, _, wrong := link.SplitAddress(t.Enrolment); err != nil || wrong != nil {
		return errors.New("the token names no server")
	}
	if !limits.IsClientName(t.Name) {
		return errors.New("the token names no site")
	}
	return nil
}
