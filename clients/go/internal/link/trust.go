// Package link is the one connection of a client: whom it trusts, its calls, and coming back.
package link

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"fedstream/client/internal/fault"
)

// ServerName is a name that every server certificate carries, whatever address the server is reached by.
const ServerName = "fedstream-server"

// A Pair is what a site shows of itself, and whose signature it trusts.
type Pair struct {
	Certificate tls.Certificate
	Authority   *x509.Certificate
}

// A Trust says how a server is known, and what is shown to it: nothing on this machine (neither field), a fingerprint, or
// certificates. Read is asked for each connection: certificates change when they are renewed.
type Trust struct {
	Fingerprint string
	Read        func() (*Pair, error)

	verdict atomic.Pointer[string] // why the last server that answered is not trusted
}

// Verdict says why the last server that answered is not trusted; empty if it is.
func (t *Trust) Verdict() string {
	if verdict := t.verdict.Load(); verdict != nil {
		return *verdict
	}
	return ""
}

// credentials are those of the next channel.
func (t *Trust) credentials(address string) (credentials.TransportCredentials, error) {
	if t.Fingerprint == "" && t.Read == nil {
		return insecure.NewCredentials(), nil
	}
	settings := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: ServerName,
		// Whom to trust is decided below, where it can also be told: TLS's own check knows no fingerprints, and gRPC only
		// says that a handshake failed.
		InsecureSkipVerify: true,
	}
	check := t.checkFingerprint
	if t.Read != nil {
		pair, err := t.Read()
		if err != nil {
			return nil, err
		}
		settings.Certificates = []tls.Certificate{pair.Certificate}
		check = func(shown []*x509.Certificate) error { return checkAuthority(shown, pair.Authority) }
	}
	settings.VerifyConnection = func(state tls.ConnectionState) error {
		return t.judge(address, check(state.PeerCertificates))
	}
	return credentials.NewTLS(settings), nil
}

// judge remembers why a server is not trusted. With an error the handshake ends before anything is sent.
func (t *Trust) judge(address string, wrong error) error {
	words := ""
	if clock := (*early)(nil); wrong != nil && !errors.As(wrong, &clock) {
		words = fmt.Sprintf("the server at %s %v: it is another server, or somebody is in between. Ask the coordinator",
			address, wrong)
	}
	t.verdict.Store(&words)
	return wrong
}

func (t *Trust) checkFingerprint(shown []*x509.Certificate) error {
	if len(shown) == 0 {
		return errors.New("showed no certificate")
	}
	actual, wanted := FingerprintOf(shown[0]), strings.ToLower(t.Fingerprint)
	if subtle.ConstantTimeCompare([]byte(actual), []byte(wanted)) != 1 {
		return fmt.Errorf("has the certificate %s, not %s", actual, wanted)
	}
	return nil
}

func checkAuthority(shown []*x509.Certificate, authority *x509.Certificate) error {
	if len(shown) == 0 {
		return errors.New("showed no certificate")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(authority)
	for _, certificate := range shown[1:] {
		between.AddCert(certificate)
	}
	options := x509.VerifyOptions{
		Roots: roots, Intermediates: between, DNSName: ServerName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	_, err := shown[0].Verify(options)
	if err == nil {
		return nil
	}
	if begins := shown[0].NotBefore; time.Now().Before(begins) {
		options.CurrentTime = begins
		if _, wrong := shown[0].Verify(options); wrong == nil {
			return &early{begins}
		}
	}
	return fmt.Errorf("has no certificate of this federation's authority (%w)", err)
}

// early says that the right server's certificate is not valid yet. A machine whose clock is wrong after its start may set it
// soon, so that it is worth coming back.
type early struct{ begins time.Time }

func (e *early) Error() string {
	const form = "2006-01-02 15:04 MST"
	return fmt.Sprintf("the server's certificate is valid from %s on, and this machine's clock says %s: set this machine's clock",
		e.begins.UTC().Format(form), time.Now().UTC().Format(form))
}

// FingerprintOf gives `sha256:` and 64 digits: the SHA-256 of a certificate's DER form.
func FingerprintOf(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// translate gives what a failed call means; an untrusted server is none to come back to.
func (t *Trust) translate(err error) error {
	meaning := fault.FromRPC(err)
	if verdict := t.Verdict(); verdict != "" && fault.IsTrouble(meaning) {
		return &fault.Stop{Code: fault.Untrusted, Message: verdict}
	}
	return meaning
}
