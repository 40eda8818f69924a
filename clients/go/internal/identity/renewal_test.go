package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// identityOf makes a folder whose certificate is valid for so long, and is its own authority.
func identityOf(t *testing.T, validity time.Duration) Folder {
	t.Helper()
	folder := Folder{t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	begins := time.Now().Add(-validity / 2)
	wanted := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "alpha"}, NotBefore: begins, NotAfter: begins.Add(validity),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, wanted, wanted, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]pem.Block{
		"site.crt": {Type: "CERTIFICATE", Bytes: certificate}, "authority.crt": {Type: "CERTIFICATE", Bytes: certificate},
		"site.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(folder.Path, name), pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func TestLooksForTheNextCertificateComeAsOftenAsThisOneAsksFor(t *testing.T) {
	for validity, look := range map[time.Duration]time.Duration{
		90 * 24 * time.Hour: time.Hour,
		6 * time.Hour:       30 * time.Minute,
		5 * time.Minute:     time.Minute,
	} {
		if found := identityOf(t, validity).untilNextLook(); (found - look).Abs() > time.Second { // it is in whole seconds
			t.Errorf("of %v it looks after %v", validity, found)
		}
	}
}

func TestCertificateThatCannotBeReadIsLookedAtAgainSoon(t *testing.T) {
	if found := (Folder{t.TempDir()}).untilNextLook(); found != time.Minute {
		t.Errorf("it looks after %v", found)
	}
}
