package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"time"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/link"
)

// Files are PEM: what a site shows, and whose signature it trusts.
type Files struct {
	Key         string
	Certificate string
	Authority   string
}

// Read reads them as they are now. An expired certificate gives a Stop: the server would only hang up.
func (f Files) Read() (*link.Pair, error) {
	authority, err := readCertificate(f.Authority)
	if err != nil {
		return nil, unusable(f.Authority, err)
	}
	if _, err := readCertificate(f.Certificate); err != nil {
		return nil, unusable(f.Certificate, err)
	}
	pair, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
	if err != nil {
		return nil, unusable(f.Key, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, unusable(f.Certificate, err)
		}
	}
	if expires := pair.Leaf.NotAfter; !time.Now().Before(expires) {
		return nil, fault.Stopf(fault.Untrusted,
			"this site's certificate has expired on %s: ask the coordinator for a new invitation, and join "+
				"again", expires.Format(time.DateOnly))
	}
	return &link.Pair{Certificate: pair, Authority: authority}, nil
}

// Name is whom the certificate is for.
func (f Files) Name() (string, error) {
	certificate, err := readCertificate(f.Certificate)
	if err != nil {
		return "", unusable(f.Certificate, err)
	}
	return certificate.Subject.CommonName, nil
}

func unusable(file string, err error) error {
	return fault.Stopf(fault.BadConfiguration, "%s cannot be used: %v", file, err)
}

// readCertificate reads the first certificate of a file.
func readCertificate(file string) (*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it is no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}
