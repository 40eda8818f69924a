// Package identity is a site's identity: its private key, its certificate, and whom it trusts, in one folder. `fedclient`
// and this client can use what the other left.
//
//	site.key        the private key, PEM; made here, before anything is sent, and never sent
//	site.crt        the site's certificate, PEM
//	authority.crt   the federation's authority, PEM: servers that it signed are trusted, and nobody else
//	identity.json   who this site is and where the server is; written last, so that without it nothing was joined
//
// Every file is readable by its owner only, and replaced whole or not at all.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"fedstream/client/internal/durable"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/link"
)

// A Folder has an identity, or will have one.
type Folder struct{ Path string }

// A Membership says who a site is, and where its server is, HOST:PORT.
type Membership struct {
	Name   string `json:"name"`
	Server string `json:"server"`
}

// Default is ~/.local/state/fedstream/identity, or below XDG_STATE_HOME where that is set.
func Default() Folder { return Folder{filepath.Join(StateHome(), "fedstream", "identity")} }

// StateHome is where programs keep what must survive a restart.
func StateHome() string {
	if home := os.Getenv("XDG_STATE_HOME"); home != "" {
		return home
	}
	home, _ := os.UserHomeDir() // without one, what follows is relative, and says so when it cannot be written
	return filepath.Join(home, ".local", "state")
}

func (f Folder) file(name string) string { return filepath.Join(f.Path, name) }

// Files are where key, certificate and authority stand.
func (f Folder) Files() Files {
	return Files{f.file("site.key"), f.file("site.crt"), f.file("authority.crt")}
}

// Membership gives what was joined; nil if nothing was.
func (f Folder) Membership() (*Membership, error) {
	text, err := os.ReadFile(f.file("identity.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	found := &Membership{}
	if err == nil {
		err = json.Unmarshal(text, found)
	}
	if err == nil && !limits.IsClientName(found.Name) {
		err = errors.New("it names no site")
	}
	if err == nil {
		_, _, err = link.SplitAddress(found.Server)
	}
	if err != nil {
		return nil, fault.Stopf(fault.BadConfiguration,
			"%s cannot be used (%v): join again, or give the right --identity", f.file("identity.json"), err)
	}
	return found, nil
}

// key gives the site's private key: the one there is, or a new one, kept before it is told.
func (f Folder) key() (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(f.file("site.key"))
	if err == nil {
		return readKey(text)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := durable.MakeFolder(f.Path); err != nil {
		return nil, err
	}
	return key, durable.WriteBytes(f.file("site.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func readKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it is no PEM")
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, isEC := any.(*ecdsa.PrivateKey)
	if !isEC {
		return nil, fmt.Errorf("it is a key of another kind (%T) than P-256", any)
	}
	return key, nil
}

// keep keeps what a server has given to this site.
func (f Folder) keep(who Membership, certificate, authority *x509.Certificate) error {
	facts, err := json.MarshalIndent(who, "", "  ")
	if err != nil {
		return err
	}
	if err := f.KeepCertificate(certificate); err != nil {
		return err
	}
	if err := durable.WriteBytes(f.file("authority.crt"), asPEM(authority)); err != nil {
		return err
	}
	return durable.WriteBytes(f.file("identity.json"), facts)
}

// KeepCertificate puts the next certificate in the place of the one there is.
func (f Folder) KeepCertificate(certificate *x509.Certificate) error {
	return durable.WriteBytes(f.file("site.crt"), asPEM(certificate))
}

func asPEM(certificate *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
}
